-- What:    every word of every document with its scores: the plain sums over the word's pieces.
-- One row: model, document, word (position from 0, through both texts of a pair).
-- Caveat:  uniform, classifier and projected are shares of the last layer's [CLS] attention, so a
--          document's words sum to less than 1 (special pieces hold the rest); contribution,
--          conservative and deeplift are in logits of the target's margin, and signed. Beyond the
--          model's maximum length scores are 0: see predictions.truncated. segment is 1 for words
--          of text_pair, whose characters count from 0 again. Documents that a model has no answer
--          for have no words here: see bad_documents.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW words AS
WITH word AS (
    SELECT
        s.model,
        d.document_id,
        length(d.text) + 1 AS second,
        unnest(range(len(d.form)))::INTEGER AS position,
        unnest(d.form) AS form,
        unnest(d."start") AS start_char,
        unnest(d."end") AS end_char,
        unnest(COLUMNS(s.* EXCLUDE (model, "row")))
    FROM read_parquet('*/scores/*.parquet') AS s
    JOIN read_parquet('documents/*.parquet') AS d USING ("row")
    WHERE s.uniform IS NOT NULL
)
SELECT
    model, document_id, position, form,
    (start_char >= second)::UTINYINT AS segment,
    (start_char - if(start_char >= second, second, 0))::INTEGER AS start_char,
    (end_char - if(start_char >= second, second, 0))::INTEGER AS end_char,
    * EXCLUDE (model, document_id, position, form, second, start_char, end_char)
FROM word;

COMMENT ON COLUMN words.position IS
    'place of the word in the document, from 0, on through both texts of a pair';
COMMENT ON COLUMN words.form IS 'case-folded NFC spelling';
COMMENT ON COLUMN words.segment IS '0 for words of text, 1 for those of text_pair';
COMMENT ON COLUMN words.start_char IS 'its first character in its text, from 0';
COMMENT ON COLUMN words.end_char IS 'the character behind its last';
