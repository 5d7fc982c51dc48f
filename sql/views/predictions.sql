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

COMMENT ON COLUMN predictions.model IS 'name of the model in the run';
COMMENT ON COLUMN predictions.predicted IS 'class of the highest logit, spelled as the labels';
COMMENT ON COLUMN predictions.confidence IS
    'probability of the predicted class, as the model states it';
COMMENT ON COLUMN predictions.margin IS
    'logit of the predicted class minus the highest other logit';
COMMENT ON COLUMN predictions.correct IS 'true where the prediction is the gold label';
COMMENT ON COLUMN predictions.target IS
    'class that the scores explain, by default the predicted one';
COMMENT ON COLUMN predictions.target_margin IS 'logit of the target minus the highest other logit';
COMMENT ON COLUMN predictions.n_pieces IS
    'number of pieces that the model read, special ones included';
COMMENT ON COLUMN predictions.truncated IS 'true where the text is longer than the model reads';
COMMENT ON COLUMN predictions.retried IS
    'true where half precision failed, so that all comes from float32';
