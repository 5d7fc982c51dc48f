-- What:    what each model says of each document.
-- One row: model, document.
-- Caveat:  confidence is the probability of the predicted class, as the model states it
--          (uncalibrated); margin is its logit minus the highest other logit; target is the class
--          that the scores explain (by default the predicted one), target_margin its margin.
--          retried: in half precision something was not finite, so that all comes from float32.
--          Documents that a model has no answer for are in bad_documents instead.
-- Source:  MODEL/attention/*.parquet, documents.
CREATE OR REPLACE VIEW predictions AS
SELECT
    model, document_id, label, predicted, confidence, margin,
    predicted = label AS correct, target, target_margin, n_pieces, truncated, retried, "row"
FROM read_parquet('*/attention/*.parquet')
JOIN documents USING ("row")
WHERE problem IS NULL;
