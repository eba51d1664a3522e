{{ pending_model('polar_v4', 'step_sample') }}
