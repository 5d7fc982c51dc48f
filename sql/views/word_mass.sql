-- What:    how much of a document's score each distinct word takes: its mass, summed shares.
-- One row: model, document (row), form.
-- Caveat:  shares are of positive parts (for the signed contribution: of what pushed toward the
--          prediction) and leave out special pieces; 0 where a document has no positive score.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW word_mass AS
WITH word AS (
    SELECT
        s.model, s."row",
        len(d.form) AS n_words,
        unnest(d.form) AS form,
        unnest(s.uniform) AS uniform,
        unnest(s.classifier) AS classifier,
        unnest(s.projected) AS projected,
        unnest(s.contribution) AS contribution,
        list_sum(list_transform(s.uniform, lambda x: greatest(x, 0))) AS all_uniform,
        list_sum(list_transform(s.classifier, lambda x: greatest(x, 0))) AS all_classifier,
        list_sum(list_transform(s.projected, lambda x: greatest(x, 0))) AS all_projected,
        list_sum(list_transform(s.contribution, lambda x: greatest(x, 0))) AS all_contribution
    FROM read_parquet('*/scores/*.parquet') AS s
    JOIN read_parquet('documents/*.parquet') AS d USING ("row")
)
SELECT
    model, "row", form,
    any_value(n_words) AS n_words,
    count(*) AS n_occurrences,
    coalesce(sum(greatest(uniform, 0) / nullif(all_uniform, 0)), 0) AS uniform,
    coalesce(sum(greatest(classifier, 0) / nullif(all_classifier, 0)), 0) AS classifier,
    coalesce(sum(greatest(projected, 0) / nullif(all_projected, 0)), 0) AS projected,
    coalesce(sum(greatest(contribution, 0) / nullif(all_contribution, 0)), 0) AS contribution
FROM word
GROUP BY model, "row", form;
