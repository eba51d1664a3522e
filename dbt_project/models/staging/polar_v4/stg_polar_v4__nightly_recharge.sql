{{ pending_model('polar_v4', 'nightly_recharge') }}
