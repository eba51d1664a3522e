{{ pending_model('polar_v4', 'training_session') }}
