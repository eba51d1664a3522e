{{ export_workouts('fitbit_takeout') }}
