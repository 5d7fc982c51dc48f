-- What:      where exactly one of two models errs: which words does the wrong one look at more?
-- One row:   pair of models, kind, form; documents that hold the word and on which one model errs.
-- Parameter: score = contribution  a word score
-- Parameter: q = 0.05              largest q of the paired test
-- Parameter: limit = 20            number of rows
-- Caveat:    gap_wrong is the mean share by model minus that by other where model is wrong,
--            gap_right where other is; gap_wrong > gap_right: the one that errs looks more at it
--            (attention of the same word in the same document); see model_differences.
SELECT
    model, other, kind, form, n_discordant AS documents, n_wrong AS model_wrong,
    round(gap_wrong, 4) AS gap_wrong, round(gap_right, 4) AS gap_right,
    round(z_paired, 2) AS z, p_paired AS p, q_paired AS q
FROM model_differences
WHERE score = $score AND q_paired <= $q::DOUBLE AND model < other
ORDER BY abs(z_paired) DESC, form
LIMIT $limit::BIGINT;
