{{ pending_model('garmin_connect', 'workouts') }}
