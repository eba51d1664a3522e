{{ workouts_pending() }}
