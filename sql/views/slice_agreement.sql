-- What:    does a finding hold in all slices of the data?
-- One row: model, score, kind, form that is over-attended, neglected or under-attended overall.
-- Caveat:  slices counts those in which enough documents hold the word, same_direction those with z
--          of the overall sign; p_heterogeneity is Cochran's Q over their adjusted ratios. verdict
--          says in words what that allows to say.
-- Source:  slice_statistics, slice_heterogeneity, over_attended, neglected, under_attended.
CREATE OR REPLACE VIEW slice_agreement AS
WITH finding AS (
    SELECT model, score, kind, form, z, 'over-attended' AS finding FROM over_attended
    UNION ALL
    SELECT model, score, kind, form, z, 'neglected' FROM neglected
    UNION ALL
    SELECT model, score, kind, form, z, 'under-attended' FROM under_attended
),
counted AS (
    SELECT
        f.model, finding, f.score, f.kind, f.form,
        count(s.slice) AS slices,
        count(*) FILTER (s.z * f.z > 0) AS same_direction,
        min(s.adjusted_ratio) AS least_adjusted_ratio,
        max(s.adjusted_ratio) AS greatest_adjusted_ratio,
        arg_min(s.slice, s.z * sign(f.z)) AS weakest_slice
    FROM finding AS f
    LEFT JOIN slice_statistics AS s USING (model, score, kind, form)
    GROUP BY f.model, finding, f.score, f.kind, f.form
)
SELECT c.*, h.chi_squared, h.p AS p_heterogeneity,
    CASE
        WHEN slices = 0 THEN 'cannot be said: in no slice do enough documents hold it'
        WHEN slices = 1 THEN 'cannot be said: enough documents hold it in one slice alone'
        WHEN h.p <= 0.05 THEN 'differs between slices'
        WHEN same_direction = slices THEN 'holds in all ' || slices || ' slices'
        ELSE 'holds in ' || same_direction || ' of ' || slices
            || ' slices, which differ no more than by chance'
    END AS verdict
FROM counted AS c
LEFT JOIN slice_heterogeneity AS h USING (model, score, kind, form)
ORDER BY model, finding, score, form;
