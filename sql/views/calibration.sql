-- What:    is a model right as often as it says it is? Confidence against accuracy, bin by bin.
-- One row: model, twentieth of confidence that any document falls in; low is its lower end.
-- Caveat:  where accuracy is below mean confidence, the model is too sure. The mean of their
--          distances, weighted by documents, is the expected calibration error (Guo et al. 2017).
-- Source:  predictions.
CREATE OR REPLACE VIEW calibration AS
SELECT
    model,
    least(floor(confidence * 20), 19) / 20 AS low,
    count(*) AS n_documents,
    avg(confidence) AS confidence,
    avg(correct::INTEGER) AS accuracy
FROM predictions
GROUP BY model, low
ORDER BY model, low;
