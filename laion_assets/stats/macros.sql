-- The catalog's table macros: questions that people ask often.
--
-- `view` names the view to ask: 'subset', 'scored', or that of a further subset. `crawls` is a
-- pattern of crawls ('CC-MAIN-2021-*'); partitions of other crawls are not read. Each answer is
-- ordered.

-- What went into each stage, what it kept and what it refused, with the meaning of each reason.
create macro funnel(crawls := '*') as table
with counted as (
    select stage, reason, cast(sum(n) as bigint) as n
    from funnel_by_segment where crawl glob crawls group by all
), ins as (select stage, n as n_in from counted where reason = 'in')
select stage, reason, n, n / nullif(n_in, 0) as share, meaning
from counted join ins using (stage) left join reasons using (stage, reason)
order by place, reason = 'in' desc, reason = 'kept' desc, n desc, reason;

-- The hosts that most samples are from.
create macro top_hosts(n := 20, view := 'subset', crawls := '*') as table
with authorities as (
    -- Group first, so that the host is cut out only once per authority.
    select split_part(url, '/', 3) as authority, count(*) as found
    from query_table(view) where crawl glob crawls group by all
), hosts as (
    select split_part(split_part(authority, '@', -1), ':', 1) as host, cast(sum(found) as bigint) as samples
    from authorities group by all
)
select host, samples, samples / sum(samples) over () as share
from hosts order by samples desc, host limit n;

-- Samples in `bins` of equal width between the lowest and the highest similarity.
create macro similarity_histogram(bins := 20, view := 'subset', crawls := '*') as table
with ends as (
    select min(similarity) as lowest, (max(similarity) - min(similarity)) / bins as step
    from query_table(view) where crawl glob crawls
), counted as (
    select coalesce(least(bins - 1, cast(floor((similarity - lowest) / nullif(step, 0)) as int)), 0)
        as bin, count(*) as samples
    from query_table(view), ends where crawl glob crawls group by all
)
select lowest + bin * step as low, lowest + (bin + 1) * step as high, samples,
    samples / sum(samples) over () as share
from counted, ends order by bin;

-- Table 1 of the paper, beside its figures of LAION-400M.
create macro resolution_table(view := 'subset', crawls := '*') as table
with counted as (
    select count(*) as "all",
        count(*) filter (greatest(width, height) >= 1024) as either_1024,
        count(*) filter (least(width, height) >= 1024) as both_1024,
        count(*) filter (greatest(width, height) >= 512) as either_512,
        count(*) filter (least(width, height) >= 512) as both_512,
        count(*) filter (greatest(width, height) >= 256) as either_256,
        count(*) filter (least(width, height) >= 256) as both_256
    from query_table(view) where crawl glob crawls
), rows as (unpivot counted on columns(*) into name "row" value samples)
select what, rows.samples, coalesce(rows.samples / nullif(max(rows.samples) over (), 0), 0) as share,
    paper.samples as laion400m, paper.samples / max(paper.samples) over () as laion400m_share
from rows join laion400m as paper using ("row") order by place;

-- Captions by their number of characters, in steps of `width`; `up_to` is the share so far.
create macro caption_lengths(width := 10, view := 'subset', crawls := '*') as table
with counted as (
    select length(text) // width as bin, count(*) as samples
    from query_table(view) where crawl glob crawls group by all
)
select bin * width as low, (bin + 1) * width as high, samples,
    samples / sum(samples) over () as share,
    sum(samples) over (order by bin) / sum(samples) over () as up_to
from counted order by bin;

-- Samples by language; with `view := 'pairs'`, pairs by language.
create macro languages(view := 'subset', crawls := '*') as table
select language, count(*) as samples, count(*) / sum(count(*)) over () as share
from query_table(view) where crawl glob crawls group by language order by samples desc, language;

-- Samples by the Creative Commons licence that their pages name; '?' if a page names none.
create macro licences(view := 'subset', crawls := '*') as table
select license, count(*) as samples, count(*) / sum(count(*)) over () as share
from query_table(view) where crawl glob crawls group by license order by samples desc, license;

-- Images (by the hash of their bytes) that several samples share: the number of samples, of URLs
-- and of texts, and one URL and text.
create macro dup_images(at_least := 2, view := 'subset', crawls := '*') as table
with often as (
    -- By the hash's first eight bytes, which takes a fifth of the memory; the query below is exact.
    select cast('0x' || left(sha256, 16) as ubigint) as head
    from query_table(view) where crawl glob crawls and length(sha256) = 64
    group by all having count(*) >= at_least
)
select sha256, count(*) as samples, count(distinct url) as urls, count(distinct text) as texts,
    min(url) as url, min(text) as text
from query_table(view)
where crawl glob crawls and length(sha256) = 64
    and cast('0x' || left(sha256, 16) as ubigint) in (from often)
group by sha256 having count(*) >= at_least order by samples desc, sha256;

-- `n` random samples; the same `seed` draws the same ones, whatever the order of partitions.
create macro sample(n := 10, view := 'subset', seed := 0, crawls := '*') as table
from query_table(view) where crawl glob crawls order by hash(sample_id, seed) limit n;

-- The `n` pairs nearest to the recipe's threshold on either side of it; those above it were kept.
-- Pairs with a safety tag, or a text that names minors, are left out.
create macro around_threshold(n := 12, crawls := '*') as table
with recipe as (
    select max(cast(metadata ->> 'threshold' as double)) as threshold
    from runs where asset = 'filtered_subset' and crawl glob crawls
), harmless as (
    from scored, recipe where crawl glob crawls and nsfw = 'UNLIKELY' and not text_names_minors
)
from (
    (from harmless semi join subset using (crawl, segment, sample_id)
        where similarity >= threshold order by similarity, sample_id limit n)
    union all
    (from harmless where similarity < threshold order by similarity desc, sample_id limit n)
) order by similarity desc, sample_id;

-- Rows, time and size of each asset, over all its partitions.
create macro throughput(crawls := '*') as table
select asset, count(*) as partitions, cast(sum(n_in) as bigint) as n_in,
    cast(sum(kept) as bigint) as kept, sum(seconds) as seconds,
    sum(n_in) / nullif(sum(seconds), 0) as per_second, cast(sum(bytes) as bigint) as bytes
from runs where crawl glob crawls group by asset order by min(started), asset;
