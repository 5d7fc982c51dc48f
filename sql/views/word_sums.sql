-- What:    the sums of each tested unit over the documents of each stratum: all that z needs.
-- One row: model, kind (word, bigram, group), form, pair of strata (one under each reference).
-- Caveat:  for each score s: s_s1, s_s2, s_s3 are the sums of its mass, of its square and its cube,
--          s_lift that of mass / places covered x words in the document. Documents without the unit
--          add nothing, and are counted in strata.
-- Source:  MODEL/sums/*.parquet, whose rows simply add up, in any order.
CREATE OR REPLACE VIEW word_sums AS
SELECT
    model, kind, form, predicted_stratum, label_stratum, error,
    sum(n_documents)::BIGINT AS n_documents,
    sum(COLUMNS('_(s1|s2|s3|lift)$'))
FROM read_parquet('*/sums/*.parquet')
GROUP BY model, kind, form, predicted_stratum, label_stratum, error;
