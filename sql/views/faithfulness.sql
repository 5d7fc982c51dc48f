-- What:    how faithful each score is to its model, beside scores that others use.
-- One row: model, score or baseline, perturbation (masked, removed); none before clsight validate.
-- Caveat:  with p the probability of the class that scores explain, on a seeded sample of documents;
--          a word is masked where its pieces become the tokenizer's mask piece, and removed where
--          they are taken out. Both leave texts that nobody would write, each in its own way: trust
--          what holds under both. Baselines run in float32, with transformers' own attention.
-- Source:  measured_faithfulness, which clsight validate fills from MODEL/faithfulness.parquet.
CREATE OR REPLACE VIEW faithfulness AS
FROM measured_faithfulness
ORDER BY model, perturbation, comprehensiveness DESC, score;

COMMENT ON COLUMN faithfulness.model IS 'name of the model in the run';
COMMENT ON COLUMN faithfulness.score IS 'score, or baseline: random, leave_one_out, gradient_x_input, integrated_gradients';
COMMENT ON COLUMN faithfulness.kind IS 'score (of clsight) or baseline';
COMMENT ON COLUMN faithfulness.perturbation IS 'what is done to words: masked or removed';
COMMENT ON COLUMN faithfulness.n_documents IS 'documents of the sample that the model answers';
COMMENT ON COLUMN faithfulness.comprehensiveness IS
    'how much p falls without the highest 1, 5, 10, 20, 50 % of the words, mean; higher is better';
COMMENT ON COLUMN faithfulness.comprehensiveness_low IS
    'lower end of its 95 % interval, by resampling documents';
COMMENT ON COLUMN faithfulness.comprehensiveness_high IS
    'upper end of its 95 % interval, by resampling documents';
COMMENT ON COLUMN faithfulness.sufficiency IS
    'how much p falls with the highest 1, 5, 10, 20, 50 % of the words alone, mean; lower is better';
COMMENT ON COLUMN faithfulness.sufficiency_low IS 'lower end of its 95 % interval';
COMMENT ON COLUMN faithfulness.sufficiency_high IS 'upper end of its 95 % interval';
COMMENT ON COLUMN faithfulness.aopc IS
    'how much p falls without the highest 10, 20, .. 100 % of the words, mean; higher is better';
COMMENT ON COLUMN faithfulness.aopc_low IS 'lower end of its 95 % interval';
COMMENT ON COLUMN faithfulness.aopc_high IS 'upper end of its 95 % interval';
COMMENT ON COLUMN faithfulness.flips IS
    'share of documents that are predicted otherwise without the highest 1, 5, 10, 20, 50 % of the words, mean';
COMMENT ON COLUMN faithfulness.flips_low IS 'lower end of its 95 % interval';
COMMENT ON COLUMN faithfulness.flips_high IS 'upper end of its 95 % interval';
COMMENT ON COLUMN faithfulness.level_with_best IS
    'whether the 95 % interval of its comprehensiveness minus that of the best score holds 0 (paired by document)';
COMMENT ON COLUMN faithfulness.reconstruction IS
    '1 - sum |D - S| / sum |D|: S sums a signed score over words, D is what masking all words takes from the margin; 1 is exact, null for scores without a sign';
COMMENT ON COLUMN faithfulness.seconds IS 'seconds that scoring the sample took, by this score alone';
COMMENT ON COLUMN faithfulness.passes IS
    'the same in forward passes: over the seconds of clsight''s forward pass without scores';
COMMENT ON COLUMN faithfulness.steps IS 'steps of integrated gradients; null for all others';
COMMENT ON COLUMN faithfulness.seed IS 'seed of the sample, of random scores and of resamples';
