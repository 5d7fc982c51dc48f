-- What:      words by the strength of evidence, with thresholds of one's own.
-- One row:   model, score, kind, form.
-- Parameter: model = (all)         a model's name
-- Parameter: score = contribution  a word score
-- Parameter: direction = over      over: more in errors; under: less
-- Parameter: q = 0.05              largest q in that direction
-- Parameter: min_documents = 1     fewest documents that hold the word
-- Parameter: limit = 20            number of rows per model
-- Caveat:    a q chosen after having looked at the words is no longer the share of false ones.
SELECT
    model, kind, form, n_documents, n_errors,
    round(adjusted_ratio, 2) AS adjusted_ratio,
    [round(adjusted_ratio_low, 2), round(adjusted_ratio_high, 2)] AS interval,
    round(mass_ratio, 2) AS mass_ratio, round(presence_ratio, 2) AS presence,
    round(intensity_ratio, 2) AS intensity, round(lift, 2) AS lift, round(z, 2) AS z,
    if($direction = 'under', p_under, p) AS p,
    if($direction = 'under', q_under, w.q) AS q,
    if($direction = 'under', consistency_under, consistency) AS consistency,
    p_from, note
FROM word_statistics AS w
WHERE score = $score AND ($model = '(all)' OR model = $model)
  AND n_documents >= $min_documents::BIGINT
  AND if($direction = 'under', q_under, w.q) <= $q::DOUBLE
QUALIFY row_number() OVER (
    PARTITION BY model ORDER BY if($direction = 'under', w.z, -w.z), form
) <= $limit::BIGINT
ORDER BY model, if($direction = 'under', w.z, -w.z), form;
