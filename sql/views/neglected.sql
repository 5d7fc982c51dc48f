-- What:    the opposite of over_attended: errors gather where the word stands, and the model does
--          not look at it (it passes the same test with a lift below 1).
-- One row: model, score, kind, form.
-- Caveat:  as over_attended; the mass is higher in errors because the word is there more often.
-- Source:  word_statistics, run_parameters.
CREATE OR REPLACE VIEW neglected AS
SELECT
    row_number() OVER (PARTITION BY model, score, kind ORDER BY z DESC, form) AS rank,
    w.*
FROM word_statistics AS w, run_parameters AS p
WHERE q <= p.max_q
  AND consistency >= p.min_consistency
  AND coalesce(mass_ratio, 'infinity') >= p.min_mass_ratio
  AND lift < 1
ORDER BY model, score, kind DESC, rank;

COMMENT ON COLUMN neglected.rank IS
    'place within model, score and kind, from 1: the strongest z first';
