-- What:      errors in which a word takes most of a model's score: the evidence for one word.
-- One row:   model, document; the two texts of a pair stand side by side.
-- Parameter: form             the word, or two words side by side, case-folded
-- Parameter: model = (all)    a model's name
-- Parameter: least = false    true: errors in which the word is there and takes least, the evidence
--                             for a neglected one
-- Parameter: limit = 20       number of documents per model
-- Caveat:    of two words, what they take counts where they stand side by side.
WITH error AS (
    SELECT model, "row", document_id, label, predicted, confidence
    FROM predictions
    WHERE NOT correct AND ($model = '(all)' OR model = $model)
),
document AS (
    -- Which words of a document are the one asked for, or one of two that stand side by side.
    SELECT
        "row",
        list_transform(
            list_zip(form, list_concat(form[2:], ['']), list_concat([''], form[:-2])),
            lambda w: w[1] = $form OR w[1] || ' ' || w[2] = $form OR w[3] || ' ' || w[1] = $form
        ) AS asked
    FROM read_parquet('documents/*.parquet') SEMI JOIN error USING ("row")
    WHERE list_has_all(form, string_split($form, ' '))
),
word AS (
    SELECT
        s.model, s."row",
        unnest(asked) AS asked,
        greatest(unnest(contribution), 0) AS contribution,
        greatest(unnest(uniform), 0) AS uniform
    FROM read_parquet('*/scores/*.parquet') AS s
    JOIN document USING ("row")
    SEMI JOIN error USING (model, "row")
    WHERE list_contains(asked, true)
),
share AS (
    -- As in word_mass, but of this word alone.
    SELECT
        model, "row",
        coalesce(sum(contribution) FILTER (asked) / nullif(sum(contribution), 0), 0) AS contribution_share,
        coalesce(sum(uniform) FILTER (asked) / nullif(sum(uniform), 0), 0) AS uniform_share
    FROM word
    GROUP BY model, "row"
),
strongest AS (
    -- Texts are read for these documents alone.
    FROM error JOIN share USING (model, "row")
    QUALIFY row_number() OVER (
        PARTITION BY model
        ORDER BY if($least::BOOLEAN, contribution_share, -contribution_share), document_id
    ) <= $limit::INTEGER
)
SELECT
    model, e.document_id, e.label, predicted, round(confidence, 3) AS confidence,
    round(e.contribution_share, 3) AS contribution_share,
    round(e.uniform_share, 3) AS uniform_share,
    concat_ws(' | ', text, text_pair) AS text
FROM strongest AS e JOIN documents AS d USING ("row")
ORDER BY model, if($least::BOOLEAN, e.contribution_share, -e.contribution_share), e.document_id;
