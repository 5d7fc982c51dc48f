-- What:      one word within each slice of the data, and in all: does its effect hold everywhere?
-- One row:   model, slice (in all: the whole dataset).
-- Parameter: form                  the word, bigram or group
-- Parameter: model = (all)         a model's name
-- Parameter: score = contribution  a word score
-- Caveat:    slices in which too few documents hold the word are not here.
SELECT
    model, slice, kind, n_documents, n_errors, round(mass_ratio, 2) AS mass_ratio,
    round(adjusted_ratio, 2) AS adjusted_ratio, round(z, 2) AS z, p, q
FROM (
    FROM slice_statistics
    UNION ALL BY NAME
    SELECT 'in all' AS slice, * FROM word_statistics
)
WHERE form = $form AND score = $score AND ($model = '(all)' OR model = $model)
ORDER BY model, kind, slice = 'in all', slice;
