{{ pending_model('xdrip', 'meals') }}
