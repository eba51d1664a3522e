{{ config(meta={'rights': 'owner'}) }}

{%- set cadences = var('sync_cadence_hours') -%}
with providers as (
    -- source_priorities ranks every source there is.
    select
        source as provider,
        coalesce(('{{ tojson(cadences) }}'::jsonb ->> source)::integer, {{ cadences['default'] }}) as cadence_hours
    from {{ ref('source_priorities') }}
    where metric_type = '*'
),

accounts as (
    select
        providers.provider,
        count(*) filter (where connections.status = 'active') as accounts_active,
        count(*) filter (where connections.status = 'pending') as accounts_pending,
        count(*) filter (where connections.status = 'error') as accounts_error,
        count(*) filter (where connections.status = 'disconnected') as accounts_disconnected,
        -- Who is connected should sync; who failed before the first sync has not.
        avg((coalesce(connections.hours_since_last_sync <= providers.cadence_hours, false))::integer)
            filter (where connections.status in ('active', 'error')) as synced_share
    from providers
    inner join {{ ref('int_connections_checked') }} as connections on connections.provider = providers.provider
    where {{ visible_to_reader('connections.user_id') }}
    group by providers.provider
),

failures as (
    select
        provider,
        count(*) as failed_jobs
    from {{ ref('int_jobs_failed') }}
    where failed_at > {{ present_instant() }} - interval '7 days'
        and {{ visible_to_reader('user_id') }}
    group by provider
)

select
    providers.provider,
    coalesce(accounts.accounts_active, 0) as accounts_active,
    coalesce(accounts.accounts_pending, 0) as accounts_pending,
    coalesce(accounts.accounts_error, 0) as accounts_error,
    coalesce(accounts.accounts_disconnected, 0) as accounts_disconnected,
    providers.cadence_hours,
    accounts.synced_share::double precision as synced_share,
    receipts.objects_24h,
    receipts.objects_7d,
    receipts.quarantined_7d,
    coalesce(failures.failed_jobs, 0) as failed_jobs_7d,
    newest_receipt.received_at as last_received_at,
    newest_data.data_end_date as newest_data_date
from providers
left join accounts on accounts.provider = providers.provider
left join failures on failures.provider = providers.provider
-- A provider at a time, so that the indexes by provider and time find what is new.
cross join lateral (
    select
        count(*) filter (where objects.received_at > {{ present_instant() }} - interval '24 hours') as objects_24h,
        count(*) as objects_7d,
        coalesce(sum(refused.refused_count), 0)::bigint as quarantined_7d
    from {{ ref('int_receipts_attributed') }} as objects
    cross join lateral (
        select count(*) as refused_count
        from {{ ref('metric_quarantine') }} as quarantined
        where quarantined.raw_object_id = objects.raw_object_id
    ) as refused
    where objects.source = providers.provider
        and objects.received_at > {{ present_instant() }} - interval '7 days'
        and {{ visible_to_reader('objects.user_id') }}
) as receipts
left join lateral (
    select objects.received_at
    from {{ ref('int_receipts_attributed') }} as objects
    where objects.source = providers.provider and {{ visible_to_reader('objects.user_id') }}
    order by objects.received_at desc
    limit 1
) as newest_receipt on true
left join lateral (
    select objects.data_end_date
    from {{ ref('int_receipts_attributed') }} as objects
    where objects.source = providers.provider
        and objects.data_end_date is not null
        and {{ visible_to_reader('objects.user_id') }}
    order by objects.data_end_date desc
    limit 1
) as newest_data on true
where accounts.provider is not null or newest_receipt.received_at is not null
