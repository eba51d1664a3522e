{{ export_workouts('garmin_connect') }}
