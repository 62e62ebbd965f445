//! `/view/mirrors/{id}` and `/view/builds/{id}`: what became of a job, for whoever has its id.

use std::{net::IpAddr, sync::Arc};

use super::{Html, container::time, page};
use crate::{
    api::{Api, Response, error_response::Shape},
    blocking::Errand,
    mirror::jobs::{JobId, JobRecord, Outcome},
    requests::DurableKind,
    units::ByteSize,
};

impl Api {
    pub(in crate::api) async fn job_page(&self, id: JobId, client: IpAddr) -> Response {
        let record = match self.find_job(&id, Shape::Page, client).await {
            Ok(record) => record,
            Err(refusal) => return refusal,
        };
        let jobs = Arc::clone(&self.shared.jobs);
        let log = self.shared.pool.run(Errand::Grants, move || jobs.log(&id));
        // The rest is shown without it.
        let log = log.await.ok().and_then(Result::ok).flatten();
        shown(&record, &log.unwrap_or_default())
    }
}

fn shown(record: &JobRecord, log: &str) -> Response {
    let job = &record.job;
    let title = match job.kind {
        DurableKind::Mirror => format!("Mirror of {}", job.source),
        DurableKind::Freeze => format!("Freeze of {}", job.source),
    };
    page(200, &title, |html| {
        html.element("h1", &title).raw("<section>\n");
        state(html, record);
        html.raw("</section>\n<section>\n<h2>Request</h2>\n<dl>\n");
        html.fact("By", job.user.as_deref().unwrap_or("an anonymous caller"));
        html.raw("<dt>On</dt><dd>");
        time(html, job.created);
        html.raw("</dd>\n");
        html.code_fact("Source", &job.source.to_string());
        html.code_fact("Digest", &job.digest.to_string());
        html.code_fact("Target", &job.target.to_string());
        let platform = job.platform.as_ref().map(ToString::to_string);
        html.fact("Platform", &platform.unwrap_or_default());
        html.code_fact("Id", job.id.as_str());
        html.raw("</dl>\n</section>\n");
        if !log.is_empty() {
            html.raw("<section>\n<h2>Log</h2>\n<pre>").text(log);
            html.raw("</pre>\n</section>\n");
        }
    })
}

fn state(html: &mut Html, record: &JobRecord) {
    let Some(ended) = &record.ended else {
        html.raw("<p><span class=\"state good\">waits or runs</span> <span class=\"faint\">load the page again to see how it goes</span></p>\n");
        return;
    };
    match &ended.outcome {
        Outcome::Done { digest, bytes } => {
            html.raw("<p><span class=\"state good\">done</span> <span class=\"faint\">");
            time(html, ended.at);
            html.raw("</span></p>\n<pre>docker pull ")
                .text(&record.job.target.to_string())
                .raw("</pre>\n<dl>\n");
            html.code_fact("Digest", &digest.to_string());
            html.fact("Sent", &ByteSize(*bytes).rounded());
            html.raw("</dl>\n");
        }
        outcome => {
            html.raw(
                "<p><span class=\"state over\">did not come about</span> <span class=\"faint\">",
            );
            time(html, ended.at);
            html.raw("</span></p>\n");
            let reason = outcome.reason().unwrap_or_default();
            html.element("p", &super::sentence(&reason)).raw("\n");
        }
    }
}
