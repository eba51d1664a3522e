{{ pending_model('polar', 'recharge_sample') }}
