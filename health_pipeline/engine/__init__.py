"""Baselines, load, recovery, forecasts, glucose, alerts, correlations: pure functions from frames to frames.

Nothing here reads a file, a table or the clock: dates come from the data or from an argument. Every function
is vectorised over users, and its result does not depend on the order of the rows, on the other users in the
batch, or on history older than its window, so that computing again the days that changed gives, bit for bit,
what computing everything gives.

Two frames go in (and a third, described in `glucose`), both with naive `local_date` at midnight:

`daily`
    One row a (user_id, local_date, metric_type), with `value` in the metric's canonical unit and the elected
    `source`. Rows without a finite value count as absent. A row repeated exactly is taken once; two different
    rows for one key raise `ValueError`.
`workouts`
    One row a session and source: user_id, local_date, started_at and ended_at (UTC), activity, intensity
    (`easy`, `moderate`, `hard` or null), source.
"""
