-- What:    words that a model consistently over-attends in its errors, strongest first.
-- One row: model, score, kind, form.
-- Caveat:  passes = q <= 0.05 against both references, consistency >= 0.95, lift > 1, mass ratio at
--          least 1.2 (a null ratio is infinite: the word occurs in errors alone); thresholds are in
--          run_parameters. Attention is not a cause: this says where errors and attention meet.
-- Source:  word_statistics, run_parameters.
CREATE OR REPLACE VIEW over_attended AS
SELECT
    row_number() OVER (PARTITION BY model, score, kind ORDER BY z DESC, form) AS rank,
    w.*
FROM word_statistics AS w, run_parameters AS p
WHERE q <= p.max_q
  AND consistency >= p.min_consistency
  AND coalesce(mass_ratio, 'infinity') >= p.min_mass_ratio
  AND lift > 1
ORDER BY model, score, kind DESC, rank;

COMMENT ON COLUMN over_attended.rank IS
    'place within model, score and kind, from 1: the strongest z first';
