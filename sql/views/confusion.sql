-- What:    which labels each model takes for which.
-- One row: model, gold label, predicted label that occur together; share is of the gold label's
--          documents.
-- Source:  predictions.
CREATE OR REPLACE VIEW confusion AS
SELECT
    model, label, predicted,
    count(*) AS n_documents,
    n_documents / sum(n_documents) OVER (PARTITION BY model, label) AS share
FROM predictions
GROUP BY model, label, predicted
ORDER BY model, label, predicted;
