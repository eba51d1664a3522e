{{ pending_model('polar', 'step_sample') }}
