-- What:    how much of a document's score each distinct word takes: its mass, summed shares.
-- One row: model, document (row), form; one column per score.
-- Caveat:  shares are of positive parts (for signed scores: of what pushed toward the target) and
--          leave out special pieces; 0 where a document has no positive score.
-- Source:  MODEL/scores/*.parquet, documents/*.parquet.
CREATE OR REPLACE VIEW word_mass AS
WITH share AS (
    -- Within the lists: behind unnest, totals would be worked out for every word. The total is
    -- bound once by a list of one, for a lambda would work it out for every element.
    SELECT
        model, "row",
        list_transform(
            [list_sum(list_transform(COLUMNS(* EXCLUDE (model, "row")), lambda x: greatest(x, 0)))],
            lambda total: list_transform(
                COLUMNS(* EXCLUDE (model, "row")),
                lambda x: if(total > 0, greatest(x, 0) / total, 0)
            )
        )[1]
    FROM read_parquet('*/scores/*.parquet')
),
word AS (
    SELECT
        model, "row",
        len(form) AS n_words,
        unnest(form) AS form,
        unnest(COLUMNS(share.* EXCLUDE (model, "row")))
    FROM share
    JOIN read_parquet('documents/*.parquet') USING ("row")
)
SELECT
    model, "row", form,
    any_value(n_words) AS n_words,
    count(*) AS n_occurrences,
    sum(COLUMNS(* EXCLUDE (model, "row", form, n_words)))
FROM word
GROUP BY model, "row", form;
