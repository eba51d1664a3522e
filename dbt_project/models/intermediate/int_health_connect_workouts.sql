{{ export_workouts('health_connect') }}
