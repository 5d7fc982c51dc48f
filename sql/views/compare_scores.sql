-- What:    how far the scores of a model agree, and how much of its margin each explains.
-- One row: model, pair of scores (each pair both ways).
-- Caveat:  rank_correlation is the mean over documents of Spearman's over their words, top5_shared
--          the mean share of the five top words in common, over documents with more than five.
--          margin_explained is of `score`: the squared correlation, over documents, of its sum over
--          words with the target's margin. classifier against projected says what leaving out W_o
--          does; either against contribution, what weighting heads alone misses.
-- Source:  MODEL/agreement/*.parquet.
CREATE OR REPLACE VIEW compare_scores AS
SELECT
    model, score, other,
    sum(rank_correlation) / nullif(sum(n_ranked), 0) AS rank_correlation,
    sum(top_shared) / nullif(sum(n_longer), 0) AS top5_shared,
    (sum(n) * sum(xm) - sum(x) * sum(m)) ^ 2 / nullif(
        (sum(n) * sum(xx) - sum(x) ^ 2) * (sum(n) * sum(mm) - sum(m) ^ 2), 0
    ) AS margin_explained
FROM read_parquet('*/agreement/*.parquet')
WHERE score <> other
GROUP BY model, score, other
ORDER BY model, score::score_name, other::score_name;
