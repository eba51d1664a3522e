{{ export_workouts('health_auto_export') }}
