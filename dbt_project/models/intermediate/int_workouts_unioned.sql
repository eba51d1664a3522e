{{ workouts_unioned() }}
