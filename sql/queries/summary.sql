-- What:      each model at a glance: how often it errs, and how many words stand out in its errors.
-- One row:   model; detectable is the adjusted ratio with which half of the words would be found.
SELECT
    model, n_documents AS documents, n_copies AS copies, n_errors AS errors, round(accuracy, 4) AS accuracy,
    n_words_tested AS words_tested, n_over_attended AS over_attended, n_neglected AS neglected,
    n_under_attended AS under_attended, round(detectable_ratio, 2) AS detectable, note
FROM model_summary
ORDER BY accuracy DESC, model;
