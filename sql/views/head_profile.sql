-- What:    what each attention head looks at from [CLS], in errors against correct documents.
-- One row: model, layer, head.
-- Caveat:  means over documents: entropy of the row in nats, and its share on [CLS] itself, on the
--          other special pieces, and on punctuation. classifier_weight and projected_weight are the
--          head's mean weight in those scores, null but for the last layer. Errors are not matched
--          for confidence here: a difference may be one of confidence.
-- Source:  MODEL/heads/*.parquet.
CREATE OR REPLACE VIEW head_profile AS
WITH outcome AS (
    SELECT model, layer, head, correct,
        sum(n_documents)::BIGINT AS n,
        nullif(n, 0) AS some,
        sum(entropy) AS entropy,
        sum(on_cls) AS on_cls,
        sum(on_separators) AS on_separators,
        sum(on_punctuation) AS on_punctuation,
        sum(classifier) AS classifier,
        sum(projected) AS projected
    FROM read_parquet('*/heads/*.parquet')
    GROUP BY model, layer, head, correct
)
SELECT
    model, layer, head,
    e.n + c.n AS n_documents,
    e.n AS n_errors,
    (e.entropy + c.entropy) / (e.n + c.n) AS entropy,
    e.entropy / e.some AS entropy_errors,
    c.entropy / c.some AS entropy_correct,
    (e.on_cls + c.on_cls) / (e.n + c.n) AS on_cls,
    e.on_cls / e.some AS on_cls_errors,
    c.on_cls / c.some AS on_cls_correct,
    (e.on_separators + c.on_separators) / (e.n + c.n) AS on_separators,
    e.on_separators / e.some AS on_separators_errors,
    c.on_separators / c.some AS on_separators_correct,
    (e.on_punctuation + c.on_punctuation) / (e.n + c.n) AS on_punctuation,
    e.on_punctuation / e.some AS on_punctuation_errors,
    c.on_punctuation / c.some AS on_punctuation_correct,
    (e.classifier + c.classifier) / (e.n + c.n) AS classifier_weight,
    (e.projected + c.projected) / (e.n + c.n) AS projected_weight
FROM outcome AS e JOIN outcome AS c USING (model, layer, head)
WHERE NOT e.correct AND c.correct
ORDER BY model, layer, head;
