{{ pending_model('health_connect', 'workouts') }}
