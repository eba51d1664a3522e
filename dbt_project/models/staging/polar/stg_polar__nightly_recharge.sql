{{ pending_model('polar', 'nightly_recharge') }}
