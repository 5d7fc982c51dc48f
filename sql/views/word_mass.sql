-- What:    how much of a document's score each distinct word takes: its mass, summed shares.
-- One row: model, document (row), form; one column per score.
-- Caveat:  shares are of positive parts (for signed scores: of what pushed toward the target) and
--          leave out special pieces; 0 where a document has no positive score. Documents that a
--          model has no answer for are not here: see bad_documents.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW word_mass AS
WITH positive AS (
    SELECT
        model, "row",
        list_transform(COLUMNS(* EXCLUDE (model, "row")), lambda x: greatest(x, 0))
    FROM read_parquet('*/scores/*.parquet')
    WHERE uniform IS NOT NULL
),
score AS (
    -- Each score keeps its total beside it through unnest. Dividing within the lists instead takes
    -- three times as long: a lambda copies what it captures for every element.
    SELECT
        model, "row",
        {
            'x': COLUMNS(* EXCLUDE (model, "row")),
            'total': nullif(list_sum(COLUMNS(* EXCLUDE (model, "row"))), 0)
        }
    FROM positive
),
word AS (
    SELECT
        model, "row",
        len(form) AS n_words,
        unnest(form) AS form,
        unnest(COLUMNS(score.* EXCLUDE (model, "row")).x)
            / COLUMNS(score.* EXCLUDE (model, "row")).total
    FROM score
    JOIN read_parquet('documents/*.parquet') USING ("row")
)
SELECT
    model, "row", form,
    any_value(n_words) AS n_words,
    count(*) AS n_occurrences,
    coalesce(sum(COLUMNS(* EXCLUDE (model, "row", form, n_words))), 0)
FROM word
GROUP BY model, "row", form;

COMMENT ON COLUMN word_mass.form IS 'the word: case-folded NFC spelling';
