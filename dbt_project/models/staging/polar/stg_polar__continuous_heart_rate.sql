{{ pending_model('polar', 'continuous_heart_rate') }}
