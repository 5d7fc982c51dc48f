-- What:    how much of a score each unit holds in errors and in comparable correct documents.
-- One row: model, score, kind (word; on request bigram, group), form. Units in fewer documents than
--          run_parameters.min_documents are not tested, and not here.
-- Caveat:  mass is the mean share over all errors (all correct documents), 0 where the unit is
--          absent; mass_ratio = presence_ratio x intensity_ratio, null where the unit is in errors
--          alone; adjusted_ratio = mass in errors over what comparable documents let expect, by the
--          reference in which it is less; _low and _high are 95 % bootstrap intervals. lift = mean
--          of share per place x words in the document. There are two references (same prediction,
--          same gold label), and the weaker counts: z is the one nearer to 0, p (more in errors)
--          and p_under (less) are one-sided, the larger of the two. q and q_under are
--          Benjamini-Hochberg over the units of a model, score and kind, each for its direction;
--          q_two_sided for both at once. p_max_t holds for all units together (only with --max-t).
--          consistency is the share of bootstrap resamples in which the unit is over-represented
--          against both references. detectable_ratio is the adjusted ratio that would have been
--          found with a probability of 80 %, were it the only one.
--          note is null but where a figure needs a word of explanation.
-- Source:  tested_words, which clsight makes from word_sums and from permutations; tested_documents.
CREATE OR REPLACE VIEW word_statistics AS
WITH ranked AS (
    SELECT *,
        least(1, 2 * least(p, p_under)) AS p_two_sided,
        count(*) OVER (PARTITION BY model, score, kind) AS n_tested,
        row_number() OVER (PARTITION BY model, score, kind ORDER BY p, form) AS place,
        row_number() OVER (PARTITION BY model, score, kind ORDER BY p_under, form) AS place_under,
        row_number() OVER (
            PARTITION BY model, score, kind ORDER BY least(p, p_under), form
        ) AS place_two_sided
    FROM tested_words
)
SELECT
    * EXCLUDE (n_tested, place, place_under, place_two_sided),
    least(1, min(p * n_tested / place) OVER (
        PARTITION BY model, score, kind ORDER BY place DESC
    )) AS q,
    least(1, min(p_under * n_tested / place_under) OVER (
        PARTITION BY model, score, kind ORDER BY place_under DESC
    )) AS q_under,
    least(1, min(p_two_sided * n_tested / place_two_sided) OVER (
        PARTITION BY model, score, kind ORDER BY place_two_sided DESC
    )) AS q_two_sided,
    CASE
        WHEN z IS NULL THEN 'cannot be tested: no two documents of a stratum differ in it and in '
            || 'being errors'
        WHEN n_errors = 0 THEN 'in no error'
        WHEN n_errors = n_documents THEN 'in errors alone: no ratio'
        WHEN n_documents = n_all THEN 'in every document: its presence says nothing'
    END AS note
FROM ranked, (SELECT count(*) AS n_all FROM tested_documents);
