-- What:      each model at a glance: how often it errs, and how many words stand out in its errors.
-- One row:   model.
SELECT
    model, n_documents AS documents, n_errors AS errors, round(accuracy, 4) AS accuracy,
    n_words_tested AS words_tested, n_over_attended AS over_attended, n_neglected AS neglected, note
FROM model_summary
ORDER BY accuracy DESC, model;
