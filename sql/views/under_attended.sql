-- What:    words that a model consistently attends less in its errors than in comparable documents.
-- One row: model, score, kind, form.
-- Caveat:  passes = q_under <= 0.05 against both references, consistency_under >= 0.95, and a mass
--          ratio of at most 1 / 1.2; thresholds are in run_parameters. A family of tests of its own:
--          of over_attended and under_attended each, 5 % are expected to be false.
-- Source:  word_statistics, run_parameters.
CREATE OR REPLACE VIEW under_attended AS
SELECT
    row_number() OVER (PARTITION BY model, score, kind ORDER BY z, form) AS rank,
    w.*
FROM word_statistics AS w, run_parameters AS p
WHERE q_under <= p.max_q
  AND consistency_under >= p.min_consistency
  AND mass_ratio * p.min_mass_ratio <= 1
ORDER BY model, score, kind DESC, rank;

COMMENT ON COLUMN under_attended.rank IS
    'place within model, score and kind, from 1: the most negative z first';
