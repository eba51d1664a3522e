{{ pending_model('fhir', 'diagnostic_report') }}
