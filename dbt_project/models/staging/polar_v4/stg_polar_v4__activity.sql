{{ pending_model('polar_v4', 'activity') }}
