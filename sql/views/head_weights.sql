-- What:    how much each head of the last layer counts for a decision, from the weights alone.
-- One row: model, weighting, class, runner-up, head; sums to 1 over heads.
-- Caveat:  classifier ignores the output projection W_o, projected goes through it.
-- Source:  MODEL/head_weights.parquet.
CREATE OR REPLACE VIEW head_weights AS
SELECT model, weighting, class, runner_up, head, weight
FROM read_parquet('*/head_weights.parquet');
