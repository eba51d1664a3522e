{{ pending_model('polar_v4', 'sleep') }}
