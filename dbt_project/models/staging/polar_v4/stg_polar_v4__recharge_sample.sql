{{ pending_model('polar_v4', 'recharge_sample') }}
