{{ pending_model('withings', 'measure') }}
