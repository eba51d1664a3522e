{{ pending_model('polar_v4', 'continuous_heart_rate') }}
