-- What:      errors in which a word takes most of a model's score: the evidence for one word.
-- One row:   model, document; the two texts of a pair stand side by side.
-- Parameter: form             the word, or two words side by side, case-folded
-- Parameter: model = (all)    a model's name
-- Parameter: least = false    true: errors in which the word is there and takes least, the evidence
--                             for a neglected one
-- Parameter: limit = 20       number of documents per model
-- Caveat:    of two words, all that either takes in the document counts.
WITH error AS (
    SELECT model, "row", document_id, label, predicted, confidence
    FROM predictions
    WHERE NOT correct AND ($model = '(all)' OR model = $model)
),
word AS (
    SELECT
        s.model, s."row",
        unnest(form) AS form,
        greatest(unnest(contribution), 0) AS contribution,
        greatest(unnest(uniform), 0) AS uniform
    FROM read_parquet('*/scores/*.parquet') AS s
    JOIN (
        SELECT "row", form FROM read_parquet('documents/*.parquet')
        WHERE list_has_all(form, string_split($form, ' '))
            AND (NOT contains($form, ' ')
                OR contains(' ' || array_to_string(form, ' ') || ' ', ' ' || $form || ' '))
    ) USING ("row")
    SEMI JOIN error USING (model, "row")
),
share AS (
    -- As in word_mass, but of this word alone.
    SELECT
        model, "row",
        coalesce(sum(contribution) FILTER (form IN string_split($form, ' ')) / nullif(sum(contribution), 0), 0)
            AS contribution_share,
        coalesce(sum(uniform) FILTER (form IN string_split($form, ' ')) / nullif(sum(uniform), 0), 0) AS uniform_share
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
