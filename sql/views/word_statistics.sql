-- What:    how much of a score each word holds in errors and in comparable correct documents.
-- One row: model, score, form (words in fewer documents than run_parameters.min_documents are not
--          tested, and not here).
-- Caveat:  mass is the mean share over all errors (all correct documents), 0 where the word is
--          absent; mass_ratio = presence_ratio x intensity_ratio, null where the word is in errors
--          alone. lift = mean of share per occurrence x words in the document. z and p are the
--          weaker of two references (same prediction, same gold label), one-sided; q is
--          Benjamini-Hochberg over the words of a model and score; consistency is the share of
--          bootstrap resamples in which the word is over-represented against both references.
-- Source:  tested_words, which clsight's statistics write.
CREATE OR REPLACE VIEW word_statistics AS
WITH ranked AS (
    SELECT *,
        row_number() OVER (PARTITION BY model, score ORDER BY p, form) AS place,
        count(*) OVER (PARTITION BY model, score) AS n_tested
    FROM tested_words
)
SELECT
    model, score, form, n_documents, n_errors, mass_errors, mass_correct, mass_ratio,
    presence_ratio, intensity_ratio, lift, z, p,
    least(1, min(p * n_tested / place) OVER (
        PARTITION BY model, score ORDER BY place DESC
    )) AS q,
    consistency
FROM ranked;
