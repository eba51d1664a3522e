{{ pending_model('fitbit_takeout', 'workouts') }}
