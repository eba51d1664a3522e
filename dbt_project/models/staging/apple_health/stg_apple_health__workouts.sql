{{ pending_model('apple_health', 'workouts') }}
