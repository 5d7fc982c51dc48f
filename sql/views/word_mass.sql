-- What:    how much of a document's score each distinct word takes: its mass, summed shares.
-- One row: model, document (row), form.
-- Caveat:  shares are of positive parts (for the signed contribution: of what pushed toward the
--          prediction) and leave out special pieces; 0 where a document has no positive score.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW word_mass AS
WITH total AS (
    SELECT *,
        list_sum(list_transform(uniform, lambda x: greatest(x, 0))) AS all_uniform,
        list_sum(list_transform(classifier, lambda x: greatest(x, 0))) AS all_classifier,
        list_sum(list_transform(projected, lambda x: greatest(x, 0))) AS all_projected,
        list_sum(list_transform(contribution, lambda x: greatest(x, 0))) AS all_contribution
    FROM read_parquet('*/scores/*.parquet')
),
word AS (
    -- Shares are made within the lists: behind unnest, totals would be worked out for every word.
    SELECT
        model, "row",
        len(form) AS n_words,
        unnest(form) AS form,
        unnest(list_transform(uniform, lambda x: greatest(x, 0) / all_uniform)) AS uniform,
        unnest(list_transform(classifier, lambda x: greatest(x, 0) / all_classifier))
            AS classifier,
        unnest(list_transform(projected, lambda x: greatest(x, 0) / all_projected)) AS projected,
        unnest(list_transform(contribution, lambda x: greatest(x, 0) / all_contribution))
            AS contribution
    FROM total
    JOIN read_parquet('documents/*.parquet') USING ("row")
)
SELECT
    model, "row", form,
    any_value(n_words) AS n_words,
    count(*) AS n_occurrences,
    sum(if(isfinite(uniform), uniform, 0)) AS uniform,
    sum(if(isfinite(classifier), classifier, 0)) AS classifier,
    sum(if(isfinite(projected), projected, 0)) AS projected,
    sum(if(isfinite(contribution), contribution, 0)) AS contribution
FROM word
GROUP BY model, "row", form;
