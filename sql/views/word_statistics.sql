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
    * EXCLUDE (n_tested, place, place_under, place_two_sided, n_all),
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

COMMENT ON COLUMN word_statistics.score IS
    'how attention became a number per word: a column of words';
COMMENT ON COLUMN word_statistics.kind IS
    'what is tested: word, or where asked for bigram or group';
COMMENT ON COLUMN word_statistics.form IS
    'the word, the two words side by side, or the name of the group';
COMMENT ON COLUMN word_statistics.n_documents IS 'tested documents that hold it';
COMMENT ON COLUMN word_statistics.n_errors IS 'those of n_documents that are errors of the model';
COMMENT ON COLUMN word_statistics.mass_errors IS
    'its mean share of the score over all errors, 0 where it is absent';
COMMENT ON COLUMN word_statistics.mass_correct IS 'the same over all correct documents';
COMMENT ON COLUMN word_statistics.mass_ratio IS
    'mass_errors / mass_correct = presence_ratio x intensity_ratio; null: in errors alone';
COMMENT ON COLUMN word_statistics.mass_ratio_low IS
    'lower end of the 95 % bootstrap interval of mass_ratio';
COMMENT ON COLUMN word_statistics.mass_ratio_high IS
    'upper end of the 95 % bootstrap interval of mass_ratio';
COMMENT ON COLUMN word_statistics.presence_ratio IS
    'share of errors that hold it / share of correct documents that do';
COMMENT ON COLUMN word_statistics.presence_ratio_low IS
    'lower end of the 95 % bootstrap interval of presence_ratio';
COMMENT ON COLUMN word_statistics.presence_ratio_high IS
    'upper end of the 95 % bootstrap interval of presence_ratio';
COMMENT ON COLUMN word_statistics.intensity_ratio IS
    'mean share in errors that hold it / mean share in correct documents that do';
COMMENT ON COLUMN word_statistics.intensity_ratio_low IS
    'lower end of the 95 % bootstrap interval of intensity_ratio';
COMMENT ON COLUMN word_statistics.intensity_ratio_high IS
    'upper end of the 95 % bootstrap interval of intensity_ratio';
COMMENT ON COLUMN word_statistics.adjusted_ratio IS
    'mass in errors / what comparable documents let expect, by the reference that gives less';
COMMENT ON COLUMN word_statistics.adjusted_ratio_low IS
    'lower end of the 95 % bootstrap interval of adjusted_ratio';
COMMENT ON COLUMN word_statistics.adjusted_ratio_high IS
    'upper end of the 95 % bootstrap interval of adjusted_ratio';
COMMENT ON COLUMN word_statistics.detectable_ratio IS
    'adjusted ratio that would have been found with a probability of 80 %';
COMMENT ON COLUMN word_statistics.lift IS
    'mean share per place x words in the document: above 1 it is looked at more than others';
COMMENT ON COLUMN word_statistics.z IS
    'excess of mass in errors in standard deviations, by the reference that gives less';
COMMENT ON COLUMN word_statistics.z_predicted IS 'z among documents of the same prediction';
COMMENT ON COLUMN word_statistics.z_label IS 'z among documents of the same gold label';
COMMENT ON COLUMN word_statistics.p IS
    'one-sided p of more mass in errors, the larger of both references';
COMMENT ON COLUMN word_statistics.p_under IS
    'one-sided p of less mass in errors, the larger of both references';
COMMENT ON COLUMN word_statistics.p_max_t IS
    'p of more mass that holds for all units together (Westfall-Young), with --max-t';
COMMENT ON COLUMN word_statistics.p_max_t_under IS
    'p of less mass that holds for all units together, with --max-t';
COMMENT ON COLUMN word_statistics.consistency IS
    'share of bootstrap resamples with more mass in errors against both references';
COMMENT ON COLUMN word_statistics.consistency_under IS
    'share of bootstrap resamples with less mass in errors against both references';
COMMENT ON COLUMN word_statistics.p_from IS
    'moments where p is the tail of a Pearson III distribution, else permutations';
COMMENT ON COLUMN word_statistics.p_two_sided IS 'twice the smaller of p and p_under, at most 1';
COMMENT ON COLUMN word_statistics.q IS
    'p corrected by Benjamini-Hochberg over the units of a model, score and kind';
COMMENT ON COLUMN word_statistics.q_under IS 'p_under corrected in the same way';
COMMENT ON COLUMN word_statistics.q_two_sided IS 'p_two_sided corrected in the same way';
COMMENT ON COLUMN word_statistics.note IS 'what a figure needs to be understood, mostly null';
